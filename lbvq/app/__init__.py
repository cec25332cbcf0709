"""The page behind `lbvq app`: a video comes in, a network works on it, and what was found goes back to the browser.

Why a server of our own and not gradio: gradio builds such a page in few lines, and people know how its pages look; but
it brings a web framework, a data frame library and much else, whose versions have to fit those of torch and numpy here,
and what happens between its browser part and our function is not ours to limit or to test. This page needs seven routes
and three static files. `http.server`, which `lbvq stream --serve` uses already, does that without a dependency and
without a network, every limit is a line of ours, and tests speak to it as a browser does. The price: it is made for one
computer, or for a group that trusts each other, not for the Internet; there are no accounts and there is no encryption.

    browser --POST a video--> server.py --> jobs.py (one queue) --> work.py (one network at a time on each device)
            <--JSON, mp4, XML--         <-------------------------- files in a temporary folder
"""
